"""The six small towers of golden case model_tiny_a, shared by the tests of the encoder, its weights and the extraction."""

from imagebind_llm.config import ImageBindConfig, TowerConfig

GOLDEN_TINY = ImageBindConfig(
    towers={
        "vision": TowerConfig(24, 3, 3, (2, 28, 28), (2, 7, 7), (2, 7, 7), pre_norm=True),
        "text": TowerConfig(32, 2, 4, (12,), logit_scale=1 / 0.07, learnable_scale=True),
        "audio": TowerConfig(16, 2, 2, (20, 26), (8, 8), (6, 6), bias_kv=True, drop_path=0.1, logit_scale=20.0),
        "depth": TowerConfig(16, 2, 2, (16, 16), (8, 8), (8, 8), bias_kv=True, logit_scale=5.0),
        "thermal": TowerConfig(16, 2, 4, (16, 16), (8, 8), (8, 8), bias_kv=True, logit_scale=10.0),
        "imu": TowerConfig(16, 2, 2, (6, 80), (8,), (8,), True, drop_path=0.7, head_dropout=0.5, logit_scale=5.0),
    },
    out_width=20,
    vocab_size=40,
)
