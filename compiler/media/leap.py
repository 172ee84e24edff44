"""Leaping to a window of a sound: to the bit what decoding from the start gives, or nothing.

Of the sound before a window nothing is heard, but decoders remember: overlaps, bit reservoirs, predictions. So a leap lands some
packets before the window, where a witness, a second decoder that began earlier still, must agree with the first one from the
window's first sample to its last. What both do not agree on (AAC's noise, which is drawn from the beginning of the file on, a
damaged packet), and every codec that is not known here, is decoded from the start.

Samples are handled in runs (`runs.Run`) that follow each other from the file's first sample; a leap lands where a run begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import av.error
from av.audio.codeccontext import AudioCodecContext
from av.container import InputContainer

from javisc.compiler.media.edits import Pace
from javisc.compiler.media.open import packets
from javisc.compiler.media.runs import RUN, Run
from javisc.compiler.media.sound import SoundTrack

#: Packets after which a decoder is taken to have forgotten where it began; the witness begins twice as many before the window.
PREROLL = {"aac": 16, "mp3float": 64, "mp3": 64, "vorbis": 8, "opus": 128}
#: Codecs whose packets know nothing of each other.
INDEPENDENT = ("flac", "alac")
#: Seconds before a window for which a leap is worth its trouble.
WORTH = 20
#: Packets of the shortest kind that one run may hold.
_LONGEST_RUN = RUN // 64 + 1


class NotExact(Exception):
    """A leap would not give what decoding from the start gives: do that."""


class _Witness:
    """The second decoder. `first`: the time stamp and the samples that the first frame that is heard must have."""

    def __init__(self, stream: av.AudioStream, first: tuple[int, int]) -> None:
        self.first: tuple[int, int] | None = first
        self.other = None if _independent(stream.codec_context.name) else _twin(stream)

    def hear(self, packet: av.Packet, frames: Sequence[Any] | None) -> None:
        """Compare what the first decoder made of a packet. Raises `NotExact`."""
        if frames is None:
            raise NotExact("a packet is damaged")
        if self.first is not None and [(frame.pts, frame.samples) for frame in frames] != [self.first]:
            raise NotExact("frames are not where their packets say")
        self.first = None
        if self.other is not None:
            same = self.feed(packet)
            if len(same) != len(frames) or not all(map(_equal, same, frames)):
                raise NotExact("the decoder remembers more")

    def feed(self, packet: av.Packet) -> Sequence[Any]:
        """Have the second decoder alone decode a packet."""
        if self.other is None:
            return ()
        try:
            return self.other.decode(packet if packet.size else None)
        except av.error.FFmpegError as error:
            raise NotExact(f"a packet is damaged: {error}") from error


def leaped(
    container: InputContainer,
    stream: av.AudioStream,
    sound: SoundTrack,
    found: Iterator[av.Packet],
    last: av.Packet,
    pace: Pace | None,
) -> Iterator[av.Packet]:
    """The packets to go on with: those from where the window begins, or `found` where a leap is not worth it or not known.

    found: the stream's packets after `last`, which was decoded. sound: was started, and its current run ends with `last`.
    pace: of the track, where its file states one. Raises `NotExact`: then all of it must be read again without a leap.
    """
    run, origin, base = sound.run, sound.origin, stream.time_base
    context = stream.codec_context
    if run is None or origin is None or base is None or last.pts is None:
        return found
    size = _Sizes(stream, base, run.kind[0])
    newest = run.frames[-1]
    known = _independent(context.name) or (
        context.name in PREROLL and (context.name != "aac" or _low_complexity(stream))
    )
    plain = (newest.pts, newest.samples) == (last.pts, size.of(last))
    if not known or not plain or origin - (last.pts * base + sound.edit.shift) < WORTH:
        return found
    before = 1 if _independent(context.name) else PREROLL[context.name]
    if pace is not None and (at := _stated(run, last, pace, origin - sound.edit.shift, base, size)) is not None:
        kept, begin = _sought(container, stream, at, before, pace)
        found = packets(container, stream)
    else:
        kept, begin = _walked(
            found, run, last.pts, float(base), float((origin - sound.edit.shift) / base), size, before
        )
    first = kept[begin]
    assert first.pts is not None
    witness = _Witness(stream, (first.pts, size.of(first)))
    context.flush_buffers()
    sound.run = None
    for number, packet in enumerate(kept[:begin]):
        witness.feed(packet)
        if number >= begin - before:
            _decoded(packet)
    sound.witness = witness
    return chain(kept[begin:], found)


class _Sizes:
    """Samples of packets, by what their durations say."""

    def __init__(self, stream: av.AudioStream, base: Fraction, rate: int) -> None:
        self.scale, self.slack = base * rate, base * rate + 1
        self.usual = stream.codec_context.frame_size or 0
        self._known: dict[int | None, int] = {}

    def of(self, packet: av.Packet) -> int:
        """Samples of a packet. Raises `NotExact` where its duration does not tell."""
        if packet.duration not in self._known:
            samples = (packet.duration or 0) * self.scale
            if self.usual and abs(samples - self.usual) <= self.slack:
                samples = Fraction(self.usual)
            self._known[packet.duration] = int(samples) if samples > 0 and samples.denominator == 1 else -1
        if (found := self._known[packet.duration]) < 0:
            raise NotExact("packets do not say how long they are")
        return found


def _walked(
    found: Iterator[av.Packet], run: Run, last: int, base: float, origin: float, size: _Sizes, before: int
) -> tuple[list[av.Packet], int]:
    """The packets around the window's first run, and which of them begins it: found by reading all, without decoding any.

    last: the time stamp of the packet that ends `run`. base: seconds of a unit. origin: the window's begin, units.
    """
    rate = run.kind[0]
    start, length = last - round((run.samples - run.frames[-1].samples) / rate / base), run.samples
    if run.frames[0].pts is not None:
        start = run.frames[0].pts
    kept: deque[av.Packet] = deque(maxlen=2 * before + _LONGEST_RUN)
    begin = -1
    for count, packet in enumerate(found):
        if packet.size == 0 or packet.pts is None:
            break
        samples = size.of(packet)
        if length >= RUN or not Run.follow((packet.pts - start) * base, length / rate):
            start, length, begin = packet.pts, 0, count
        length += samples
        kept.append(packet)
        if start + length / rate / base > origin + 0.5:
            at = begin - (count + 1 - len(kept))
            if at < 2 * before:
                break
            return list(kept), at
    raise NotExact("the window begins too close to an end")


def _stated(
    run: Run, last: av.Packet, pace: Pace, origin: Fraction, base: Fraction, size: _Sizes
) -> tuple[int, int] | None:
    """The time stamp and the number of the packet that begins the window's first run, where all packets last equally long."""
    assert last.pts is not None
    samples = size.of(last)
    if (
        last.duration != pace.delta
        or base != Fraction(1, pace.timescale)
        or any(f.samples != samples for f in run.frames)
    ):
        return None
    each, begun = -(-RUN // samples), last.pts - (len(run.frames) - 1) * pace.delta
    runs = (origin / base - begun) // (each * pace.delta)
    first = begun + int(runs) * each * pace.delta
    return (first, first // pace.delta) if first // pace.delta + each < pace.packets else None


def _sought(
    container: InputContainer, stream: av.AudioStream, at: tuple[int, int], before: int, pace: Pace
) -> tuple[list[av.Packet], int]:
    """The packets from `2 * before` before the one at a time stamp up to that one, found by the file's index."""
    begin = 2 * before
    wanted = [at[0] + (number - begin) * pace.delta for number in range(begin + 1)]
    kept: list[av.Packet] = []
    try:
        container.seek(wanted[0], stream=stream)
        for packet in packets(container, stream):
            kept.append(packet)
            if len(kept) > begin:
                break
    except (av.error.FFmpegError, OSError) as error:
        raise NotExact(f"seek: {error}") from error
    if [packet.pts for packet in kept] != wanted:
        raise NotExact("packets are not where the file's index says")
    return kept, begin


def _decoded(packet: av.Packet) -> None:
    try:
        packet.decode()
    except av.error.FFmpegError as error:
        raise NotExact(f"a packet is damaged: {error}") from error


def _independent(name: str) -> bool:
    return name in INDEPENDENT or name.startswith("pcm_")


def _low_complexity(stream: av.AudioStream) -> bool:
    """True for an AAC whose decoder can be given noise beforehand: one or two channels of the usual profile."""
    context = stream.codec_context
    return context.profile == "LC" and context.layout.nb_channels in _NOISE and bool(context.extradata)


#: AAC packets (ISO/IEC 14496-3, raw_data_block) of one band of noise in each channel. A decoder that had one draws other noise
#: from there on than one that had none.
_NOISE = {
    # single_channel_element, tag, gain, ics_info (one long window, one band), a section of book 13, its energy, no tools, end
    1: "000 0000 01100100 0 00 0 000001 0 1101 00001 100000000 0 0 0 111",
    # channel_pair_element with a common window, and the same for both
    2: "001 0000 1 0 00 0 000001 0 00" + 2 * " 01100100 1101 00001 100000000 0 0 0" + " 111",
}


def _twin(stream: av.AudioStream) -> AudioCodecContext:
    """A fresh decoder of the stream's codec; one of AAC has drawn some noise already."""
    context = stream.codec_context
    twin = av.CodecContext.create(context.name, "r")
    assert isinstance(twin, AudioCodecContext)
    twin.extradata = context.extradata
    twin.sample_rate, twin.layout, twin.thread_count = context.sample_rate, context.layout, 1
    if context.name == "aac":
        bits = _NOISE[context.layout.nb_channels].replace(" ", "")
        bits += "0" * (-len(bits) % 8)
        try:
            twin.decode(av.Packet(int(bits, 2).to_bytes(len(bits) // 8, "big")))
        except av.error.FFmpegError as error:
            raise NotExact(f"the decoder takes no noise: {error}") from error
    return twin


def _equal(one: Any, other: Any) -> bool:
    return bool(one.samples == other.samples and one.to_ndarray().tobytes() == other.to_ndarray().tobytes())
