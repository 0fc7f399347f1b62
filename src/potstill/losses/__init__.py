"""The mathematics: pure functions from tensors to one number per sample. No state, no reduction over the batch.

Every loss takes the student first, then the teacher or the targets; options are keyword-only. Arithmetic is in float32
(float64 inputs stay float64), the teacher's side is a constant, and ``where`` is a boolean mask of samples to keep.
"""

from __future__ import annotations

from potstill.losses.attention import attention_kl, attention_mse
from potstill.losses.binary import bernoulli_kl, binary_cross_entropy
from potstill.losses.boundaries import activation_boundary, overhaul
from potstill.losses.channels import flow_of_solution, neuron_selectivity, pearson_features
from potstill.losses.classification import cross_entropy, teacher_free
from potstill.losses.contrastive import contrastive, contrastive_bank
from potstill.losses.decoupled import decoupled_kd, normalized_kd, weighted_soft_labels
from potstill.losses.divergences import forward_kl, jsd, logit_mse, reverse_kl, soft_cross_entropy
from potstill.losses.embeddings import embedding_cosine, embedding_mse, margin_mse, score_kl
from potstill.losses.features import hint_mse
from potstill.losses.fusion import (
    factor_transfer,
    masked_generative,
    reused_classifier,
    review,
    variational_information,
)
from potstill.losses.gradients import jacobian_matching
from potstill.losses.maps import attention_transfer, channel_wise
from potstill.losses.matching import dist, multi_level_kd
from potstill.losses.regression import huber, mse, teacher_huber, teacher_mse
from potstill.losses.relations import (
    correlation_congruence,
    probabilistic,
    relational_angle,
    relational_distance,
    similarity_preserving,
)
from potstill.losses.skewed import alpha_beta, skew_forward_kl, skew_reverse_kl, total_variation
from potstill.losses.token_relations import qkv_relation, value_relation
from potstill.losses.transformers import hidden_cosine, patient_hidden, token_mse
from potstill.losses.uncertainty import gaussian_nll, teacher_bounded

__all__ = [
    "activation_boundary",
    "alpha_beta",
    "attention_kl",
    "attention_mse",
    "attention_transfer",
    "bernoulli_kl",
    "binary_cross_entropy",
    "channel_wise",
    "contrastive",
    "contrastive_bank",
    "correlation_congruence",
    "cross_entropy",
    "decoupled_kd",
    "dist",
    "embedding_cosine",
    "embedding_mse",
    "factor_transfer",
    "flow_of_solution",
    "forward_kl",
    "gaussian_nll",
    "hidden_cosine",
    "hint_mse",
    "huber",
    "jacobian_matching",
    "jsd",
    "logit_mse",
    "margin_mse",
    "masked_generative",
    "mse",
    "multi_level_kd",
    "neuron_selectivity",
    "normalized_kd",
    "overhaul",
    "patient_hidden",
    "pearson_features",
    "probabilistic",
    "qkv_relation",
    "relational_angle",
    "relational_distance",
    "reused_classifier",
    "reverse_kl",
    "review",
    "score_kl",
    "similarity_preserving",
    "skew_forward_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "teacher_bounded",
    "teacher_free",
    "teacher_huber",
    "teacher_mse",
    "token_mse",
    "total_variation",
    "value_relation",
    "variational_information",
    "weighted_soft_labels",
]
