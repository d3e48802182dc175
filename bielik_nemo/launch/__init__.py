"""Work that is handed to a cluster, through NeMo-Run."""
