"""Gate, residual, LayerNorm and modulation in one pass over the rows; gradients of the modulations in two ordered stages.

One program owns up to `own` consecutive rows of one frame, so the choice between the two timesteps is made once per program. It
takes one row at a time, a tuple of column blocks in registers: sums over it are scalars, which no layout of threads holds back.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import added, load_vector, store_vector, times, vector_sum, wide, zero_vector

# ruff: noqa: RUF005  Triton knows sums of tuples, not unpacking

#: Sizes, and whether there is a mask: one variant serves calls with and without.
RUNTIME = ["first", "masked", "frames", "rows", "own", "chunks"]


@triton.jit
def _modulation(P, P0, sample, chosen, C: tl.constexpr, BLOCKS: tl.constexpr):
    """The sample's row of the first set of modulations, or of the second where the frame is not chosen."""
    if chosen:
        out = load_vector(P + sample, C, BLOCKS)
    else:
        out = load_vector(P0 + sample, C, BLOCKS)
    return out


@triton.jit
def _programs(MASK, masked, first, frames, rows, own, chunks, C: tl.constexpr):
    """Of a program: its number, frame, first and last row in it, its modulations, and whether of the first set."""
    program = first + tl.program_id(0)
    frame = program // chunks
    low = (program % chunks) * own
    chosen = masked == 0
    if masked != 0:
        chosen = tl.load(MASK + frame) != 0
    return program, frame.to(tl.int64), low, tl.minimum(low + own, rows), (frame // frames).to(tl.int64) * C, chosen


@triton.jit(do_not_specialize=RUNTIME)
def modulated_norm_fwd(
    first, X, Y, GATE, GATE0, SHIFT, SHIFT0, SCALE, SCALE0, MASK, RESIDUAL, OUT, MEAN, RSTD, masked, frames, rows, own, chunks,
    eps, C: tl.constexpr, BLOCKS: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """RESIDUAL = X + gate·Y (GATED), OUT its norm, modulated (NORM), both like X (B, T, S, C); MEAN and RSTD per row."""
    _, frame, low, last, sample, chosen = _programs(MASK, masked, first, frames, rows, own, chunks, C)
    if GATED:
        gate = _modulation(GATE, GATE0, sample, chosen, C, BLOCKS)
    if NORM:
        shift = _modulation(SHIFT, SHIFT0, sample, chosen, C, BLOCKS)
        scale = _modulation(SCALE, SCALE0, sample, chosen, C, BLOCKS)
    for r in range(low, last):
        row = frame * rows + r
        x = load_vector(X + row * C, C, BLOCKS)
        if GATED:
            y = load_vector(Y + row * C, C, BLOCKS)
            rounded = [r.to(RESIDUAL.dtype.element_ty) for r in added(x, times(gate, y))]
            store_vector(RESIDUAL + row * C, rounded, C, BLOCKS)
            x = wide(rounded)  # the norm sees the residual as it is stored: so it does when the two ops run apart
        if NORM:
            mean = vector_sum(x) / C
            square = 0.0
            for i in tl.static_range(len(BLOCKS)):
                columns = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
                centred = tl.where(columns < C, x[i] - mean, 0.0)
                square += tl.sum(centred * centred, 0)
            rstd = tl.rsqrt(square / C + eps)
            tl.store(MEAN + row, mean)
            tl.store(RSTD + row, rstd)
            hat = [(value - mean) * rstd for value in x]
            store_vector(OUT + row * C, added(times(hat, [s + 1.0 for s in scale]), shift), C, BLOCKS)


@triton.jit(do_not_specialize=[*RUNTIME, "programs"])
def modulated_norm_bwd(
    first, DRESIDUAL, DOUT, X, Y, GATE, GATE0, SCALE, SCALE0, MASK, MEAN, RSTD, DX, DY, PART, masked, frames, rows, own, chunks,
    programs, C: tl.constexpr, BLOCKS: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """DX (NORM), DY (GATED) like X; PART (kind, programs, C): this program's sums for gate, shift, scale, as far as there are."""
    program, frame, low, last, sample, chosen = _programs(MASK, masked, first, frames, rows, own, chunks, C)
    if GATED:
        gate = _modulation(GATE, GATE0, sample, chosen, C, BLOCKS)
    if NORM:
        scale = _modulation(SCALE, SCALE0, sample, chosen, C, BLOCKS)
    dgate = zero_vector(BLOCKS)
    dshift = zero_vector(BLOCKS)
    dscale = zero_vector(BLOCKS)
    for r in range(low, last):
        row = frame * rows + r
        dx = ()
        if NORM:
            mean = tl.load(MEAN + row)
            rstd = tl.load(RSTD + row)
            x = load_vector(X + row * C, C, BLOCKS)
            dout = load_vector(DOUT + row * C, C, BLOCKS)
            # Outside the row dout is 0, so what is there never counts.
            hat = [(value - mean) * rstd for value in x]
            grad = times(dout, [value + 1.0 for value in scale])
            dshift = added(dshift, dout)
            dscale = added(dscale, times(dout, hat))
            total = vector_sum(grad) / C
            along = vector_sum(times(grad, hat)) / C
            for i in tl.static_range(len(BLOCKS)):
                dx = dx + ((grad[i] - total - hat[i] * along) * rstd,)
        if GATED:
            through = load_vector(DRESIDUAL + row * C, C, BLOCKS)
            dx = added(through, dx) if NORM else through
            dgate = added(dgate, times(dx, load_vector(Y + row * C, C, BLOCKS)))
            store_vector(DY + row * C, times(dx, gate), C, BLOCKS)
        if NORM:
            store_vector(DX + row * C, dx, C, BLOCKS)
    at = PART + program.to(tl.int64) * C
    step = programs.to(tl.int64) * C
    if GATED:
        store_vector(at, dgate, C, BLOCKS)
        at += step
    if NORM:
        store_vector(at, dshift, C, BLOCKS)
        store_vector(at + step, dscale, C, BLOCKS)
