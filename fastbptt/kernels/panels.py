"""Matrix products over packed weights (design.md D2).

Weights (N,K) are packed into panels of `VECTORS` registers: panel p holds, for each k in turn, the
weights of its outputs n, so that a tile reads forwards only.  N is padded with zeros to a multiple
of the register; where that leaves one register over, the last panel is one register wide.
"""

from typing import Any, NamedTuple

from .jit import kernel
from .simd import FMAS, REGISTER_BYTES, VECTORS, copy_run, lanes, lanes_of, rows, shifted
from .tiles import PANELS, TALLEST, TOGETHER, WEIGHTS_AHEAD, tile, tiles

# Registers of outputs that a time loop finishes before it goes on, of few rows: L1 holds them.  The
# slots of so many are packed as one matrix.
BLOCK = 4 * VECTORS


# Names and not a table: Numba sees intrinsics as globals only.  Of one panel and of one that is but
# a register wide, the last; then tiles that become part of who uses them.
_full, _half = tiles(TALLEST), tiles(TALLEST, vectors=1)
_first, _second = tiles(TALLEST, kind="first"), tiles(TALLEST, kind="second")
_full1, _half1 = tile(1, 1), tile(1, 1, vectors=1)
_wide1, _wide2, _wide3 = (tile(r, panels=PANELS[r]) for r in (1, 2, 3))
_fetching2, _fetching3 = (tile(r, panels=PANELS[r], kind="fetching") for r in (2, 3))
_long1 = tile(1, panels=PANELS[1], kind="long")
_back1 = tile(1, panels=PANELS[1], kind="long back")
_WIDE1, _WIDE2, _WIDE3 = PANELS[1], PANELS[2], PANELS[3]
# One row goes through the panels to and fro, so many at a time that L1, 32 KB, holds them: two, and
# from the first of these K to the second one alone.  A step of three gates of 64 units takes 0.35
# us and not 0.52, one of 96 to 128 units 0.96 of what it takes by two.  Beyond that nothing is left
# in L1, and two panels' streams read L2 and L3 as fast as four.  The four sums of one panel are too
# few where two FMAs begin in a cycle: there it is always two panels, and what L1 does not hold,
# longer streams of them read 8 % faster.  On the way back these take the second half of k first,
# which L1 still holds of the panels that the last step ended with: a forward pass of a plain net of
# 256 units takes 0.965 of the time, of a GRU 0.985, a train step 0.97 (Granite Rapids).
_SINGLE_FROM, _SINGLE_TO = (kb * 1024 // (2 * VECTORS * REGISTER_BYTES) for kb in (24, 64))
LONG = (1 << 16) // REGISTER_BYTES  # registers of W beyond which L1 holds little of it
# K up to which many rows go by tiles of three rows and two panels, where as many panels make a tile
# of two rows: with 16 registers seven loads for twelve multiply-adds, not eight, and a line fetched
# at each fourth k, not at each.  A stream of nine rows of 64 to 256 units takes 0.88 to 0.97 of
# the time, a forward pass over 32 sequences of 64 units, which fetches, 0.98; beyond 128 units one
# that fetches takes as long by tall tiles.
_LOW_TO, _LOW_FETCHING_TO = (256, 128) if _WIDE2 == _WIDE3 else (0, 0)
FETCHING = max(4, TOGETHER // VECTORS + 1)  # rows from which a product fetches
# Bytes of a product's weights, and tiles below one another, from which the next panel is fetched to
# L2 where tiles do not fetch for L1 (WEIGHTS_AHEAD).  A forward pass of an LSTM of 1024 units, its
# 16 MB from L3 at best, takes 0.96 of the time with 64 rows, 0.94 with 16 or 32, of two threads
# 0.90, and as long below 512 units; with one tile of four rows, which then fetches a line at each
# k, 1.2 times.
_FAR, _FAR_TILES = 1 << 17, 3
# Bytes of A, and steps of k, from which many rows go through W twice, each time with half of k: so
# much of A, a panel and the next one are then in L2.  64 rows and 4096 k, as BPTT of 1024 units of
# an LSTM has them, run at 93 % of the FMA peak and not 90, in float64 at 78 and not 72, 3072 k at
# 91 and not 83 (Granite Rapids, whose L2 is 2 MB).
SPLIT, _SPLIT_FROM = 3 << 18, 1024
MOST_SOON = 1 << 18  # bytes: where it is more, to fetch it would drive from L2 what is in use
copy_panel_row = copy_run(registers=VECTORS)


def padded(n: int, dtype: Any) -> int:
    """n rounded up to whole registers."""
    width = lanes(dtype)
    return -(-n // width) * width


class Packed(NamedTuple):
    """Packed weights; see `packed`."""

    panels: Any  # `rows` that begin with the first panel, a panel apart
    K: int
    back: int  # 1 if few rows are to begin with the last panels: see `to_and_fro`
    apart: int  # 1 if slots are never multiplied as one matrix: see `slots.slots_apart`


@kernel(part=True, inlined=True)
def packed(weights, offset, K):
    """The panels of K inputs from flat element `offset` of an array on."""
    return Packed(rows(weights, offset, VECTORS * lanes_of(weights) * K), K, 0, 0)


@kernel(part=True, inlined=True)
def from_output(W, j):
    """W without the outputs before j, which begins a panel."""
    return Packed(shifted(W.panels, j * W.K, W.panels[1]), W.K, W.back, W.apart)


@kernel(part=True, inlined=True)
def to_and_fro(W, back):
    """W, which a product of one row, or by low tiles, reads from its last panels on if `back` is 1.

    A loop over time that goes to and fro finds in L1 what the last step left there.
    """
    return Packed(W.panels, W.K, back, W.apart)


@kernel(part=True, inlined=True)
def row_matmul(A, W, N, S, C):
    """`panel_matmul` of one row, as a part of whoever asks for it: for the loops over time.

    Behind a call, a step of one sequence of 64 units took 0.19 us and not 0.15.
    """
    if FMAS == 2 and LONG * lanes_of(A) < N * W.K:
        _long_row_matmul(A, W, N, S, C)
    else:
        _row_matmul(A, W, N, S, C, False)


@kernel(part=True)
def panel_matmul(A, M, W, N, S, C):
    """C = S + A W' over M rows and the first N outputs of W, which is `Packed`.

    A, S and C are `rows`.
    """
    if M == 1:
        row_matmul(A, W, N, S, C)
    else:
        rows_matmul(A, M, W, N, S, C, nothing(A))


@kernel(part=True)
def _long_row_matmul(A, W, N, S, C):
    """`panel_matmul` of one row where W is more than L1 holds."""
    _row_matmul(A, W, N, S, C, True)


@kernel(part=True, inlined=True)
def _row_matmul(A, W, N, S, C, long):
    """`panel_matmul` of one row; `long` is known where this is compiled."""
    K, panel = W.K, VECTORS * lanes_of(A)
    single = FMAS == 1 and _SINGLE_FROM <= K <= _SINGLE_TO
    group = panel if single else _WIDE1 * panel  # a power of two
    first, onwards = ((N - 1) & -group, -group) if W.back == 1 else (0, group)
    while 0 <= first < N:
        j, end = first, min(first + group, N)
        while j < end:
            w = from_output(W, j).panels
            s, c = shifted(S, j, S[1]), shifted(C, j, C[1])
            if j + _WIDE1 * panel <= end:
                if long and W.back == 1:
                    _back1(A, w, K, s, c, w)
                elif long:
                    _long1(A, w, K, s, c, w)
                else:
                    _wide1(A, w, K, s, c, w)
                j += _WIDE1 * panel
            else:
                if j + panel <= end:
                    _full1(A, w, K, s, c, w)
                else:
                    _half1(A, w, K, s, c, w)
                j += panel
        first += onwards


@kernel(part=True)
def _few_rows_matmul(A, M, W, N, S, C):
    """`rows_matmul` of up to TALLEST rows, which fetches nothing but weights.

    What many rows need beside took 5 % of a product of nine rows and 64 by 64 weights.
    """
    K, panel = W.K, VECTORS * lanes_of(A)
    soon, j = panel * K, 0
    # low tiles have two rows at least
    if M > 1 and (M <= 3 or K <= _LOW_TO):
        if W.back == 1:
            j = _back_low_tiles_matmul(A, M, W, N, S, C)
        else:
            j = _low_tiles_matmul(A, M, W, N, S, C)
    while j < N:
        w = from_output(W, j).panels
        s, c = shifted(S, j, S[1]), shifted(C, j, C[1])
        ahead = shifted(w, soon, panel) if WEIGHTS_AHEAD else shifted(w, 0, 0)
        if j + panel <= N:
            _full(M, 1, A, w, K, s, c, ahead)
        else:
            _half(M, 1, A, w, K, s, c, ahead)
        j += panel


@kernel(part=True)
def _low_tiles_matmul(A, M, W, N, S, C):
    """C = S + A W' by low tiles; returns how many of the N outputs that are: those that fill some.

    Tiles of two or three rows and several panels: of two or three rows, or where _LOW_TO is not 0.
    """
    return _low_tiles(A, M, W, N, S, C, nothing(A), False, False)


@kernel(part=True)
def _back_low_tiles_matmul(A, M, W, N, S, C):
    """The same from the last panels on."""
    return _low_tiles(A, M, W, N, S, C, nothing(A), False, True)


@kernel(part=True)
def _fetching_low_tiles_matmul(A, M, W, N, S, C, soon):
    """`_low_tiles_matmul`, which fetches `soon` as `rows_matmul` says."""
    return _low_tiles(A, M, W, N, S, C, soon, True, False)


@kernel(part=True, inlined=True)
def _low_tiles(A, M, W, N, S, C, soon, fetching, back):
    """All of these; `fetching` and `back` are known where this is compiled."""
    K, panel, ahead = W.K, VECTORS * lanes_of(A), shifted(A, 0, 0)
    across = (_WIDE2 if M == 2 else _WIDE3) * panel
    i = n = until = begun = run = 0
    whole = N & -across  # a power of two: a division at each product would be felt
    while i < whole:
        j = whole - across - i if back else i
        w = from_output(W, j).panels
        r = 0
        while r < M:
            height = 2 if M - r == 2 or M - r == 4 else 3
            a = shifted(A, r * A[1], A[1])
            s, c = shifted(S, j + r * S[1], S[1]), shifted(C, j + r * C[1], C[1])
            if fetching:
                while n == until and run < len(soon):
                    begun += soon[run][1]
                    until = N // across * ((M + 2) // 3) * begun // _size(soon)
                    ahead = _ahead(soon[run], (until - n) * K)
                    run += 1
                if height == 2:
                    _fetching2(a, w, K, s, c, ahead)
                else:
                    _fetching3(a, w, K, s, c, ahead)
                ahead = shifted(ahead, K * ahead[1], ahead[1])
                n += 1
            elif height == 2:
                _wide2(a, w, K, s, c, w)
            else:
                _wide3(a, w, K, s, c, w)
            r += height
        i += across
    return whole


@kernel(part=True, inlined=True)
def _size(soon):
    """The elements of all runs."""
    size = 0
    for run in range(len(soon)):
        size += soon[run][1]
    return size


@kernel(part=True, inlined=True)
def _ahead(run, steps):
    """A run's `rows`, one for each of so many steps."""
    steps = max(1, steps)
    return shifted(run, 0, (run[1] + steps - 1) // steps)


@kernel(part=True, inlined=True)
def nothing(place):
    """What `rows_matmul` is told to fetch where that is nothing."""
    none = shifted(place, 0, 0)
    return none, none, none, none, none


@kernel(part=True, inlined=True)
def rows_matmul(A, M, W, N, S, C, soon):
    """`panel_matmul` of several rows.

    `soon` are runs of memory, `rows` with the number of elements in place of a stride, that the
    loop over time comes to next: with FETCHING rows or more each tile has a part of them
    brought to L2, evenly: in a burst, the lines on their way leave no room for the product's own.
    A line at each k, by low tiles at each fourth: of a run that is longer than the tiles' k some
    lines are left out.  Nothing is fetched where all of it is more than MOST_SOON bytes, or where
    W is gone through twice (SPLIT).
    """
    if M <= TALLEST and (M < FETCHING or _size(soon) == 0):
        _few_rows_matmul(A, M, W, N, S, C)
    else:
        _many_rows_matmul(A, M, W, N, S, C, soon)


@kernel(part=True)
def _many_rows_matmul(A, M, W, N, S, C, soon):
    """`rows_matmul` where it may be more than one tile, or fetches."""
    K, width = W.K, lanes_of(A)
    panel = VECTORS * width
    # tiles of nearly equal height, `more` of them `tall`, the others of a row less: a last one of
    # one row would cost as three
    count, itemsize = (M + TALLEST - 1) // TALLEST, REGISTER_BYTES // width
    tall = (M + count - 1) // count
    more = M - (tall - 1) * count
    size = _size(soon)
    halves = 2 if K >= _SPLIT_FROM and M * K * itemsize >= SPLIT else 1
    upper = K - K // 2 if halves == 2 else K
    wanted = M >= FETCHING and 0 < size * itemsize <= MOST_SOON and halves == 1
    far = WEIGHTS_AHEAD or (count >= _FAR_TILES and N * K * itemsize >= _FAR)
    low = 0
    most = _LOW_FETCHING_TO if wanted else _LOW_TO
    if _LOW_TO and most >= K:
        if wanted:
            low = _fetching_low_tiles_matmul(A, M, W, N, S, C, soon)
        else:
            low = _low_tiles_matmul(A, M, W, N, S, C)
        wanted = wanted and low == 0
    ahead = nowhere = shifted(A, 0, 0)
    part = (panel + count - 1) // count
    n = until = begun = run = 0
    for turn in range(halves):
        first, k = (0, upper) if turn == 0 else (upper, K - upper)
        j = low
        while j < N:
            whole = j + panel <= N
            w = from_output(W, j).panels
            if whole:
                w = shifted(w, first * panel, panel)
            elif turn < halves - 1:
                break  # a panel of one register, which goes as a whole
            s, c = shifted(S, j, S[1]), shifted(C, j, C[1])
            if not wanted:
                # The next panel is on its way while the tiles read this one, a part of it by each:
                # all by the first, and L3 was waited for; a step of 512 or 1024 units takes 8 %
                # less.
                ahead = shifted(w, panel * K, part) if far else nowhere
            r = done = 0
            while done < count:
                while wanted and n == until and run < len(soon):
                    begun += soon[run][1]
                    # of the tiles that fetch: those of half a panel do not
                    until = N // panel * count * begun // size
                    ahead = _ahead(soon[run], (until - n) * K)
                    run += 1
                height, some = (tall, more - done) if done < more else (tall - 1, count - done)
                if n < until:
                    some = min(some, until - n)
                a = shifted(A, r * A[1], A[1])
                begin, end = shifted(s, r * s[1], s[1]), shifted(c, r * c[1], c[1])
                if not whole:
                    _half(height, some, a, w, K, begin, end, ahead)
                elif halves == 1:
                    _full(height, some, a, w, K, begin, end, ahead)
                elif turn == 0:
                    _first(height, some, a, w, k, begin, end, ahead)
                else:
                    _second(height, some, shifted(a, first, a[1]), w, k, end, end, ahead)
                ahead = shifted(ahead, some * k * ahead[1], ahead[1])
                n += some
                done += some
                r += some * height
            j += panel
