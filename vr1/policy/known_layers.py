"""The layers of transformers' language models whose inside this program relies on."""

# Layers of one build: norm, attention with rotated halves, norm, gated linear unit; each part added to what came in.
KNOWN_LAYERS = frozenset(
    {
        "LlamaDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen2VLDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3VLTextDecoderLayer",
    }
)
