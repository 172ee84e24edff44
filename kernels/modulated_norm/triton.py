"""Gate, residual, LayerNorm and modulation in one pass over the rows; gradients of the modulations in two ordered stages.

One program owns up to `own` consecutive rows of one frame, so the choice between the two timesteps is made once per program.
A row is held in registers as a tuple of column blocks.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import load, store, store_vector, zero_vector

# ruff: noqa: RUF005  Triton knows sums of tuples, not unpacking


@triton.jit
def _one_of(P, P0, offsets, inside, chosen, HAS_MASK: tl.constexpr):
    if HAS_MASK:
        if chosen:
            out = tl.load(P + offsets, mask=inside, other=0.0).to(tl.float32)
        else:
            out = tl.load(P0 + offsets, mask=inside, other=0.0).to(tl.float32)
    else:
        out = tl.load(P + offsets, mask=inside, other=0.0).to(tl.float32)
    return out


@triton.jit
def _modulation(P, P0, sample, chosen, C: tl.constexpr, BLOCKS: tl.constexpr, HAS_MASK: tl.constexpr):
    """The sample's row of the first set of modulations, or of the second where the frame is not chosen."""
    out = ()
    for i in tl.static_range(len(BLOCKS)):
        cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
        out = out + (_one_of(P, P0, sample + cols, cols < C, chosen, HAS_MASK),)
    return out


@triton.jit(do_not_specialize=["first", "frames", "rows", "own", "chunks"])
def modulated_norm_fwd(
    X, Y, GATE, GATE0, SHIFT, SHIFT0, SCALE, SCALE0, MASK, RESIDUAL, OUT, MEAN, RSTD, first, frames, rows, own, chunks, eps,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, HAS_MASK: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """RESIDUAL = X + gate·Y (GATED), OUT its norm, modulated (NORM), both like X (B, T, S, C); MEAN and RSTD per row."""
    program = first + tl.program_id(0)
    frame = program // chunks
    low = (program % chunks) * own
    last = tl.minimum(low + own, rows)
    sample = (frame // frames).to(tl.int64) * C
    chosen = True
    if HAS_MASK:
        chosen = tl.load(MASK + frame) != 0
    if GATED:
        gate = _modulation(GATE, GATE0, sample, chosen, C, BLOCKS, HAS_MASK)
    if NORM:
        shift = _modulation(SHIFT, SHIFT0, sample, chosen, C, BLOCKS, HAS_MASK)
        scale = _modulation(SCALE, SCALE0, sample, chosen, C, BLOCKS, HAS_MASK)
    for start in range(low, last, ROWS):
        r = start + tl.arange(0, ROWS)
        inside = r < last
        row = frame.to(tl.int64) * rows + r
        xs = load(X, row * C, inside, C, BLOCKS)
        if GATED:
            ys = load(Y, row * C, inside, C, BLOCKS)
        total = tl.zeros([ROWS], tl.float32)
        wide = ()
        kept = ()
        for i in tl.static_range(len(BLOCKS)):
            x = xs[i].to(tl.float32)
            if GATED:
                # The norm sees the residual as it is stored, rounded: so it does when the two ops run apart.
                rounded = (x + gate[i][None, :] * ys[i].to(tl.float32)).to(RESIDUAL.dtype.element_ty)
                kept = kept + (rounded,)
                x = rounded.to(tl.float32)
            total += tl.sum(x, 1)
            wide = wide + (x,)
        if GATED:
            store(RESIDUAL, row * C, inside, kept, C, BLOCKS)
        if NORM:
            mean = total / C
            square = tl.zeros([ROWS], tl.float32)
            for i in tl.static_range(len(BLOCKS)):
                cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
                centred = tl.where((cols < C)[None, :], wide[i] - mean[:, None], 0.0)
                square += tl.sum(centred * centred, 1)
            rstd = tl.rsqrt(square / C + eps)
            tl.store(MEAN + row, mean, mask=inside)
            tl.store(RSTD + row, rstd, mask=inside)
            out = ()
            for i in tl.static_range(len(BLOCKS)):
                hat = (wide[i] - mean[:, None]) * rstd[:, None]
                out = out + (hat * (scale[i] + 1.0)[None, :] + shift[i][None, :],)
            store(OUT, row * C, inside, out, C, BLOCKS)


@triton.jit(do_not_specialize=["first", "frames", "rows", "own", "chunks", "programs"])
def modulated_norm_bwd(
    DRESIDUAL, DOUT, X, Y, GATE, GATE0, SCALE, SCALE0, MASK, MEAN, RSTD, DX, DY, PART, first, frames, rows, own, chunks, programs,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, HAS_MASK: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """DX (NORM), DY (GATED) like X; PART (kind, programs, C): this program's sums for shift, scale, gate, as far as there are."""
    program = first + tl.program_id(0)
    frame = program // chunks
    low = (program % chunks) * own
    last = tl.minimum(low + own, rows)
    sample = (frame // frames).to(tl.int64) * C
    chosen = True
    if HAS_MASK:
        chosen = tl.load(MASK + frame) != 0
    if GATED:
        gate = _modulation(GATE, GATE0, sample, chosen, C, BLOCKS, HAS_MASK)
    if NORM:
        scale = _modulation(SCALE, SCALE0, sample, chosen, C, BLOCKS, HAS_MASK)
    dgate = zero_vector(BLOCKS)
    dshift = zero_vector(BLOCKS)
    dscale = zero_vector(BLOCKS)
    for start in range(low, last, ROWS):
        r = start + tl.arange(0, ROWS)
        inside = r < last
        row = frame.to(tl.int64) * rows + r
        hats = ()
        grads = ()
        if NORM:
            mean = tl.load(MEAN + row, mask=inside, other=0.0)
            rstd = tl.load(RSTD + row, mask=inside, other=0.0)
            xs = load(X, row * C, inside, C, BLOCKS)
            douts = load(DOUT, row * C, inside, C, BLOCKS)
            along = tl.zeros([ROWS], tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            shifts = ()
            scales = ()
            for i in tl.static_range(len(BLOCKS)):
                dout = douts[i].to(tl.float32)
                # Outside the row dout is 0, so hat never counts there.
                hat = (xs[i].to(tl.float32) - mean[:, None]) * rstd[:, None]
                grad = dout * (scale[i] + 1.0)[None, :]
                shifts = shifts + (dshift[i] + tl.sum(dout, 0),)
                scales = scales + (dscale[i] + tl.sum(dout * hat, 0),)
                total += tl.sum(grad, 1)
                along += tl.sum(grad * hat, 1)
                hats = hats + (hat,)
                grads = grads + (grad,)
            dshift = shifts
            dscale = scales
            total = total / C
            along = along / C
        if GATED:
            dresiduals = load(DRESIDUAL, row * C, inside, C, BLOCKS)
            ys = load(Y, row * C, inside, C, BLOCKS)
        dxs = ()
        dys = ()
        gates = ()
        for i in tl.static_range(len(BLOCKS)):
            if NORM:
                dx = (grads[i] - total[:, None] - hats[i] * along[:, None]) * rstd[:, None]
            if GATED:
                if NORM:
                    cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
                    dx = tl.where(inside[:, None] & (cols < C)[None, :], dx + dresiduals[i].to(tl.float32), 0.0)
                else:
                    dx = dresiduals[i].to(tl.float32)
                gates = gates + (dgate[i] + tl.sum(dx * ys[i].to(tl.float32), 0),)
                dys = dys + (dx * gate[i][None, :],)
            dxs = dxs + (dx,)
        if GATED:
            dgate = gates
            store(DY, row * C, inside, dys, C, BLOCKS)
        if NORM:
            store(DX, row * C, inside, dxs, C, BLOCKS)
    at = PART + program.to(tl.int64) * C
    step = programs.to(tl.int64) * C
    if NORM:
        store_vector(at, dshift, C, BLOCKS)
        store_vector(at + step, dscale, C, BLOCKS)
        at += 2 * step
    if GATED:
        store_vector(at, dgate, C, BLOCKS)


@triton.jit(do_not_specialize=["first", "samples", "frames", "chunks"])
def modulated_norm_sum(
    PART, MASK, OUT, first, samples, frames, chunks,
    C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """OUT (kind, group, sample, C); group 0 gathers the frames whose mask is True, group 1 the others."""
    blocks = tl.cdiv(C, COLUMNS)
    program = first + tl.program_id(0)
    cols = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    slot = program // blocks
    sample = slot % samples
    group = slot // samples % GROUPS
    kind = slot // samples // GROUPS
    count = frames * chunks
    base = (kind * samples + sample).to(tl.int64) * count
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, count, ROWS):
        p = start + tl.arange(0, ROWS)
        wanted = p < count
        if GROUPS == 2:
            chosen = tl.load(MASK + sample * frames + p // chunks, mask=wanted, other=0) != 0
            wanted = wanted & (chosen == (group == 0))
        part = tl.load(
            PART + (base + p)[:, None] * C + cols[None, :], mask=wanted[:, None] & (cols < C)[None, :], other=0.0
        )
        total += tl.sum(part, 0)
    tl.store(OUT + slot.to(tl.int64) * C + cols, total.to(OUT.dtype.element_ty), mask=cols < C)
