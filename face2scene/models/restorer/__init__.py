"""The one-step restorer: SD 2.1 with LoRA, guided by text and degradation tokens (supplement 2.2)."""
