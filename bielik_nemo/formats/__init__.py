"""The exported model in other formats: GGUF for llama.cpp, and what measures a format in its own runtime."""
