"""Colours and style sheet of the report's page.

Every colour has a name and two values, for a light and a dark screen. The page says `var(--name)`; the plots
are drawn with the light value, which plots.py turns into the same `var(--name)`.
"""

PALETTE = {
    "paper": ("#f5f6f8", "#0f1318"),
    "card": ("#ffffff", "#171c23"),
    "line": ("#dde2e8", "#2b333d"),
    "wash": ("#eef2f8", "#1e2630"),
    "ink": ("#18202a", "#e7ecf2"),
    "muted": ("#5a6675", "#9aa7b6"),
    "source": ("#3566c9", "#7fa6ff"),
    "pruned": ("#b5530c", "#f2a25c"),
    "distilled": ("#0f7d62", "#4fcba6"),
    "sft": ("#7a3fb4", "#c39bff"),
    "dpo": ("#b0236c", "#ff8fc4"),
    "grpo": ("#0b7391", "#5cc8e8"),
    "merged": ("#7d6200", "#dcc04a"),
    "other": ("#4f6272", "#9fb3c4"),
}

_RULES = """
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100% }
header, main, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.25rem }
header { padding-top: 3rem }
.eyebrow { margin: 0; color: var(--muted) }
h1 { margin: .3rem 0 .6rem; font-size: clamp(1.7rem, 5vw, 2.9rem); line-height: 1.15; font-weight: 680;
  letter-spacing: -.02em }
.lede { margin: 0 0 2rem; font-size: 1.15rem; max-width: 54rem; text-wrap: pretty }
h2 { margin: 0 0 .4rem; font-size: 1.3rem; letter-spacing: -.01em }
section > b { white-space: nowrap }
h2 + p { margin: 0 0 1.1rem; color: var(--muted); max-width: 46rem }

.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  margin: 0 0 1rem }
section { padding: 1.5rem 1.6rem 1.6rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr));
  gap: 0 1rem; margin: 0 }
.tile { padding: .95rem 1.15rem 1rem }
.tile dt, .tile dd { margin: 0; color: var(--muted); font-size: .9rem }
.tile b { display: block; color: var(--ink); font-size: 1.65rem; line-height: 1.3; font-weight: 650;
  letter-spacing: -.01em }

.wide { overflow-x: auto }
.wide + .wide, .panels + .wide, .wide + .panels { margin-top: 1.6rem }
table { border-collapse: collapse; width: 100%; font-size: .95rem }
th, td { padding: .5rem 1rem .5rem 0; border-bottom: 1px solid var(--line); text-align: left }
tr > :last-child { padding-right: 0 }
thead th { color: var(--muted); font-size: .88rem; font-weight: 500; line-height: 1.3;
  vertical-align: bottom }
tbody th { font-weight: 500 }
small { color: var(--muted); font-weight: 400; font-size: .82em }
tbody tr:last-child > * { border-bottom: 0 }
tfoot > tr > * { border-top: 1px solid var(--line); border-bottom: 0; font-weight: 650 }
tr.same > * { color: var(--muted); font-weight: 400 }
.num { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.barcell { width: 45%; min-width: 8rem; padding-left: .6rem }
.bar { display: block; height: .7rem; min-width: 2px; border-radius: .35rem; background: var(--muted) }
.model { white-space: nowrap }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .55em }
.source { background: var(--source) }
.pruned { background: var(--pruned) }
.distilled { background: var(--distilled) }
.sft { background: var(--sft) }
.dpo { background: var(--dpo) }
.grpo { background: var(--grpo) }
.merged { background: var(--merged) }
.other { background: var(--other) }

.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.5rem 2.2rem; align-items: end }
figure { margin: 0; min-width: 0 }
figcaption { margin: 0 0 .3rem; color: var(--muted); font-size: .92rem }
figcaption b { color: var(--ink); font-weight: 600 }
svg { display: block; width: 100%; height: auto }
svg text { font-family: inherit !important }
.wide svg { min-width: 38rem }

.sample { border-top: 1px solid var(--line); padding-top: 1.4rem; margin-top: 1.5rem }
h2 + .sample { border: 0; padding: 0; margin-top: .8rem }
.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4;
  font: .86rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.who { margin: 0 0 .3rem; font-size: .88rem; font-weight: 600 }
.prompt { background: var(--wash); border-left: 4px solid var(--muted); border-radius: 0 8px 8px 0;
  padding: .7rem 1rem }
.prompt .who { color: var(--muted) }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr));
  gap: 1rem 1.8rem; margin-top: 1rem }

.verdict { display: inline-block; margin-left: .4rem; padding: .05rem .75rem; border: 1.5px solid;
  border-radius: 1rem; font-size: .9rem; font-weight: 650 }
.good { color: var(--distilled) }
.bad { color: var(--pruned) }
footer { padding-top: .5rem; padding-bottom: 3rem; color: var(--muted); font-size: .86rem }

@media (max-width: 40rem) {
  header { padding-top: 1.6rem }
  header, main, footer { padding-left: .75rem; padding-right: .75rem }
  section { padding: 1.15rem 1.1rem }
}
@media print { section, .tile, .sample { break-inside: avoid } }
"""


def stylesheet() -> str:
    """The page's CSS: both sets of colours, then the rules."""
    light, dark = ("; ".join(f"--{name}: {pair[mode]}" for name, pair in PALETTE.items()) for mode in (0, 1))
    root = f":root {{ color-scheme: light dark; {light} }}"
    return f"{root}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}{_RULES}"
