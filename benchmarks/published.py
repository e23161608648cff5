"""The shapes of published models, as in their config.json, and the vocabulary sizes of published tokenizers.

With these the size of a run is known without a network. Keys that a config.json leaves out here have the defaults of
its family (common/families.py). The numbers of parameters in the comments are those that the authors state;
tests/test_fit.py counts them.
"""

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
}
PYTHIA = {
    "model_type": "gpt_neox",
    "vocab_size": 50304,
    "max_position_embeddings": 2048,
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
    "hidden_act": "gelu",
    "tie_word_embeddings": False,
}

CONFIGS = {
    "gpt2": GPT2,  # 124,439,808
    "distilgpt2": GPT2 | {"n_layer": 6},  # 81,912,576
    "EleutherAI/pythia-70m": PYTHIA  # 70,426,624
    | {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048},
    "EleutherAI/pythia-160m": PYTHIA  # 162,322,944
    | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "allenai/OLMo-1B-hf": {  # 1,176,764,416
        "model_type": "olmo",
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 8192,
        "tie_word_embeddings": True,
    },
    "allenai/OLMo-2-0425-1B": {  # 1,484,916,736
        "model_type": "olmo2",
        "vocab_size": 100352,
        "max_position_embeddings": 4096,
        "rope_theta": 500000,
        "rms_norm_eps": 1e-6,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 8192,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen3-0.6B-Base": {  # 596,049,920
        "model_type": "qwen3",
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000,
        "rms_norm_eps": 1e-6,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "tie_word_embeddings": True,
    },
}

# ids of each tokenizer, special ones included; the models' embeddings have a few rows more, for tensor cores
TOKENIZERS = {
    "bytes": 257,
    "gpt2": 50257,
    "distilgpt2": 50257,
    "EleutherAI/pythia-70m": 50277,
    "EleutherAI/pythia-160m": 50277,
    "allenai/OLMo-1B-hf": 50280,
    "allenai/OLMo-2-0425-1B": 100278,
    "Qwen/Qwen3-0.6B-Base": 151669,
}
