"""The operations whose effect on the samples of a batch is known, by name.

Names are those of functions and methods of torch without underscores around them: ``add`` stands
for ``torch.add``, ``Tensor.add``, ``Tensor.add_`` and ``Tensor.__add__``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import NamedTuple

from torch import Tensor

from gradvac.engine.samples import indexing_rules, product_rules, recurrent, shape_rules
from gradvac.engine.samples.places import Call, Rule


class SplitBy(Enum):
    """How the gradient of a parameter is split where it is used together with samples."""

    NONE = auto()  # not possible here
    POINTWISE = auto()  # one derivative for all tasks, then sums over the rows of each
    SLICES = auto()  # the operation recomputed for each task, only on its rows
    MASKED = auto()  # the derivative for each task in full, other tasks' rows set to zero
    REGISTERED = auto()  # by the user's formula, or as SLICES; may return several tensors


class Entry(NamedTuple):
    """The entry of a known operation.

    Attributes:
        rule: where the samples lie in what it returns.
        split_by: how the gradient of a parameter is split.
        gradients: the formula of a registered operation for the parameters of one task.
        once: whether it is a custom function whose backward may run only once.
    """

    rule: Rule
    split_by: SplitBy
    gradients: Callable[..., Sequence[Tensor | None]] | None = None
    once: bool = False


def _normalized_dims(call: Call) -> int:
    return len(call.argument(1, "normalized_shape"))


_POINTWISE = """
    add radd iadd sub rsub isub mul rmul imul multiply div rdiv idiv truediv rtruediv itruediv
    true_divide pow rpow ipow neg negative positive abs absolute exp expm1 log log1p log2 sqrt
    rsqrt square reciprocal sin cos tanh sigmoid erf logit relu relu6 gelu silu mish softplus elu
    selu celu leaky_relu hardtanh hardswish hardsigmoid logsigmoid log_sigmoid softsign
    tanhshrink threshold
    clamp clip clamp_min clamp_max where masked_fill addcmul addcdiv lerp maximum minimum
    nan_to_num sign round floor ceil trunc frac fmod remainder mod rmod floor_divide floordiv
    rfloordiv float double half bfloat16 to type type_as clone contiguous detach data bool long
    int eq ne lt le gt ge and or xor rand ror rxor invert logical_not logical_and logical_or
    logical_xor bitwise_and bitwise_or bitwise_not isnan isinf isfinite copy fill zero
    zeros_like ones_like full_like empty_like expand
    expand_as broadcast_to requires_grad cuda cpu real
    logaddexp logaddexp2 xlogy xlog1py atan2 arctan2 hypot fmax fmin copysign ldexp float_power
    tan asin acos atan sinh cosh asinh acosh atanh arcsin arccos arctan arcsinh arccosh arctanh
    erfc erfinv exp2 log10 lgamma digamma sinc sgn fix deg2rad rad2deg i0 hardshrink softshrink
    conj conj_physical resolve_conj resolve_neg angle isneginf isposinf isclose polar complex
    greater
    greater_equal less less_equal not_equal subtract
    special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit
    special_expm1 special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr
    special_logit special_ndtr special_ndtri special_psi special_digamma special_gammaln
    special_sinc special_xlog1py special_xlogy
"""

OPERATIONS: dict[str, Entry] = {name: Entry(shape_rules.broadcast, SplitBy.POINTWISE)
                           for name in _POINTWISE.split()}  # fmt: skip


def _add(names: str, rule: Rule, split_by: SplitBy = SplitBy.MASKED) -> None:
    for name in names.split():
        OPERATIONS[name] = Entry(rule, split_by)


# Operations that draw random numbers cannot be recomputed.
_add("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout"
     " bernoulli rand_like randn_like", shape_rules.broadcast, SplitBy.NONE)  # fmt: skip
_add("softmax log_softmax cumsum cumprod logcumsumexp glu normalize flip sort argsort",
     shape_rules.along(1))  # fmt: skip
_add("topk kthvalue", shape_rules.along(2, -1))
_add("cummax cummin softmin", shape_rules.along(1))
_add("diff", shape_rules.along(2, -1))
_add("fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft", shape_rules.along(2, -1))
_add("fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2", shape_rules.along(2, (-2, -1)))
_add("fft_fftn fft_ifftn fft_rfftn fft_irfftn", shape_rules.along(2))
_add("fft_fftshift fft_ifftshift", shape_rules.along(1))
OPERATIONS["normalize"] = Entry(
    lambda call: shape_rules.along(1)(
        replace(call, args=(call.args[0], call.argument(2, "dim", 1)), kwargs={})
    ),
    SplitBy.MASKED,
)
_add("roll", shape_rules.along(2))
_add("sum mean var std prod logsumexp amax amin argmax argmin all any count_nonzero nansum nanmean"
     " var_mean std_mean median nanmedian mode aminmax", shape_rules.reduction(1))  # fmt: skip
_add("norm linalg_norm linalg_vector_norm quantile nanquantile", shape_rules.reduction(2))
_add("cosine_similarity", product_rules.similarity)
_add("cdist", product_rules.distances, SplitBy.SLICES)
_add("max min", shape_rules.extremum)
_add(
    "view reshape flatten unflatten view_as reshape_as unsqueeze squeeze ravel", shape_rules.reshape
)
_add("transpose swapaxes swapdims t T mT H mH adjoint", shape_rules.transpose)
_add("permute", shape_rules.permute)
_add("chunk split tensor_split unbind select narrow diagonal unfold split_with_sizes hsplit vsplit"
     " movedim moveaxis",
     indexing_rules.selection)  # fmt: skip
_add("getitem", indexing_rules.getitem, SplitBy.SLICES)
_add("index_select", indexing_rules.index_select, SplitBy.SLICES)
_add("as_strided", shape_rules.windows)
_add("index_add index_copy", indexing_rules.index_add)
_add("gather scatter scatter_add take_along_dim", indexing_rules.gather)
_add("stack", shape_rules.stack)
_add("cat concat concatenate", shape_rules.concatenate)
_add("repeat tile", shape_rules.repeat)
_add("repeat_interleave", shape_rules.repeat_interleave)
_add("tril triu", product_rules.last_dims(lambda call: 2, "it cuts"))
_add("pad", shape_rules.pad)
_add("setitem", indexing_rules.assign, SplitBy.NONE)
_add("cross_entropy nll_loss", product_rules.token_loss)
_add("mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy kl_div"
     " binary_cross_entropy_with_logits", product_rules.pointwise_loss)  # fmt: skip

_add("matmul rmatmul mm bmm mv", product_rules.matmul, SplitBy.SLICES)
_add("addmm baddbmm addmv", product_rules.addmm, SplitBy.SLICES)
_add("grouped_mm", product_rules.grouped)
_add("inner", product_rules.inner, SplitBy.SLICES)
_add("outer ger", product_rules.outer, SplitBy.SLICES)
_add("tensordot", product_rules.tensordot, SplitBy.SLICES)
_add("linalg_inv linalg_inv_ex inverse linalg_det det logdet linalg_slogdet slogdet linalg_cholesky"
     " cholesky linalg_qr qr linalg_eigh linalg_svd svd linalg_svdvals linalg_eigvalsh"
     " linalg_matrix_exp matrix_exp linalg_matrix_power matrix_power linalg_pinv pinverse"
     " linalg_solve_triangular linalg_householder_product cholesky_inverse",
     product_rules.matrices)  # fmt: skip
_add("pixel_shuffle pixel_unshuffle", product_rules.last_dims(lambda call: 3, "it rearranges"))
_add("embedding_bag", product_rules.bag, SplitBy.SLICES)
_add("view_as_complex", product_rules.last_dims(lambda call: 1, "it joins"))
_add("view_as_real one_hot", product_rules.last_dims(lambda call: 0, ""))
_add("einsum", product_rules.einsum, SplitBy.SLICES)
_add("scaled_dot_product_attention", product_rules.attention, SplitBy.SLICES)
_add("rms_norm", product_rules.last_dims(_normalized_dims, "it normalises over"), SplitBy.SLICES)
_add("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d group_norm"
     " instance_norm batch_norm bilinear prelu max_pool1d max_pool2d max_pool3d avg_pool1d"
     " avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
     " adaptive_max_pool1d adaptive_max_pool2d interpolate", product_rules.first_dim,
     SplitBy.SLICES)  # fmt: skip
_add("linear", product_rules.last_dims(lambda call: 1, "it mixes"), SplitBy.SLICES)
_add(
    "layer_norm",
    product_rules.last_dims(_normalized_dims, "it normalises over"),
    SplitBy.SLICES,
)
_add("embedding", indexing_rules.lookup, SplitBy.SLICES)
_add("recurrent_layer", recurrent.layer_place, SplitBy.SLICES)
_add("recurrent_cell", recurrent.cell_place, SplitBy.SLICES)
_add("whole_recurrent_layer", recurrent.layer_place)
_add("whole_recurrent_cell", recurrent.cell_place)
_add("pack_padded_sequence", recurrent.pack)
_add("pad_packed_sequence", recurrent.unpack)
_add("masked_select", indexing_rules.masked_select)

# Attributes and methods that describe a tensor and return nothing with a gradient.
IGNORED = frozenset(
    """
    size dim ndimension numel nelement stride storage_offset is_contiguous item tolist data_ptr
    len index repr str format hash dir is_floating_point is_complex is_cuda is_same_size
    get_device element_size storage untyped_storage numpy deepcopy reduce_ex
    reduce register_hook retain_grad has_names is_nonzero set_grad_enabled is_tensor equal allclose
    nonzero unique is_pinned pin_memory is_shared share_memory empty zeros ones arange full eye
    tensor manual_seed rand randn randint randperm linspace contains new_zeros
    new_ones new_full new_empty new_tensor
    """.split()
)
