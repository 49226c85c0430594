"""A process of its own in which eSpeak NG speaks, so that it says everything the same way each time.

    python espeak.py LIBRARY DATA < utterances.json > samples
    [{"text": "turn on the kitchen light", "voice": "en-us+f2", "rate": 160, "pitch": 50, "range": 50}, ...]
    -> the sampling rate, and for each utterance its number of samples and the samples: int32, int32, int16 ...

The library has the state of its waves and random numbers in itself, each phrase goes on where the last one ended, and initialising it
again takes nothing back: the second phrase would depend on the first one, and a second dataset on the first. It also sets the
process's locale. In a new process all that is as it was the last time. The standard library alone, to start in hundredths of a second.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback, in this thread; no audio device is opened
DONT_EXIT = 0x8000  # espeakINITIALIZE_: an error code instead of an exit
UTF_8 = 1  # espeakCHARS_
# espeak_PARAMETER: percent, at whose default of 100 some voices are cut off; words a minute; 0 to 99; 0 to 99
PARAMETERS = {"volume": 2, "rate": 1, "pitch": 3, "range": 4}
VARIANTS = "voices/!v"
SEED = 42

Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """eSpeak NG, initialised; once in a process. Raises RuntimeError for data or a voice that it does not find."""

    def __init__(self, library: str, data: str):
        self.data = Path(data).resolve()
        self.library = ctypes.CDLL(library)
        # It has room for 160 characters of a path, and an environment's can be longer.
        os.chdir(self.data.parent)
        self.sampling_rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, self.data.name.encode(), DONT_EXIT)
        if self.sampling_rate <= 0:
            raise RuntimeError(f"eSpeak NG does not read its data in {data}")
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(SEED))  # else it is the time
        self.samples = bytearray()
        self._callback = Callback(self._take)  # kept, since the library has no more than its address
        self.library.espeak_SetSynthCallback(self._callback)

    def say(self, *, text: str, voice: str, **parameters: int) -> bytes:
        """16-bit samples of a text, without the pause that ends a sentence."""
        variant = voice.partition("+")[2]
        # A voice with an unknown variant is the voice without one, and no error.
        unknown = variant and not (self.data / VARIANTS / variant).is_file()
        if unknown or self.library.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"eSpeak NG has no voice {voice}")
        for name, value in parameters.items():
            self.library.espeak_SetParameter(PARAMETERS[name], value, 0)
        self.samples.clear()
        content = text.encode()
        size = ctypes.c_size_t(len(content) + 1)
        if self.library.espeak_Synth(content, size, 0, 1, 0, UTF_8, None, None):
            raise RuntimeError(f"eSpeak NG does not say {text!r}")
        return bytes(self.samples)

    def _take(self, samples: "ctypes._Pointer[ctypes.c_short]", number: int, events: int | None) -> int:
        if samples and number > 0:
            self.samples += ctypes.string_at(samples, 2 * number)
        return 0


def main() -> None:
    """Say what stands in the standard input; a voice that is not there ends it with a line in the standard error."""
    try:
        _say_all()
    except (RuntimeError, OSError) as error:
        sys.exit(str(error))


def _say_all() -> None:
    speaker = Speaker(*sys.argv[1:])
    output = sys.stdout.buffer
    output.write(speaker.sampling_rate.to_bytes(4, sys.byteorder))
    for utterance in json.load(sys.stdin):
        samples = speaker.say(**utterance)
        output.write((len(samples) // 2).to_bytes(4, sys.byteorder) + samples)


if __name__ == "__main__":
    main()
