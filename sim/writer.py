"""The host's half of writing text: which token comes next, and when the text ends."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from systolith.errors import UserError
from systolith.fixed import Int
from systolith.sampling import GREEDY, Sampler


@dataclass(frozen=True, kw_only=True)
class Request:
    """A text to be written.

    ``prompt``: tokens, at least one. ``tokens``: new ones at most; a context that is full ends the
    text earlier. ``stops``: tokens that end it, themselves included. ``ends``: told the new
    tokens after each, says whether the text ends with the last of them; it must depend on them
    alone. Raises ``UserError`` for an empty prompt or fewer tokens than one.
    """

    prompt: Sequence[int]
    tokens: int
    sampler: Sampler = GREEDY
    stops: Collection[int] = ()
    ends: Callable[[Sequence[int]], bool] | None = None

    def __post_init__(self) -> None:
        if not len(self.prompt):
            raise UserError("The prompt is empty: give some text")
        if self.tokens < 1:
            raise UserError(f"The number of tokens must be at least 1, not {self.tokens}")

    @property
    def device_chooses(self) -> bool:
        """Whether a program can write the text without asking the host."""
        return self.sampler.greedy and len(self.stops) <= 1 and self.ends is None

    def total(self, context: int) -> int:
        """Tokens of the text at its longest, prompt included, in a context of so many tokens.

        The last one never enters the context. Raises ``UserError`` for a prompt beyond it.
        """
        if len(self.prompt) > context:
            raise UserError(
                f"The prompt has {len(self.prompt)} tokens, which is beyond the context of "
                f"{context}: shorten the prompt"
            )
        return min(len(self.prompt) + self.tokens, context + 1)

    def end(self, text: Sequence[int], context: int) -> str:
        """What ends the finished ``text``, prompt included: "stop", "tokens" or "context"."""
        if self._stops(text):
            return "stop"
        return "tokens" if len(text) == len(self.prompt) + self.tokens else "context"

    def _stops(self, text: Sequence[int]) -> bool:
        new = text[len(self.prompt) :]
        return bool(new) and (
            new[-1] in self.stops or (self.ends is not None and self.ends(new))
        )


class Writer:
    """Writes one text: ``text`` grows from the prompt, token by token.

    ``scale``: of the logits; ``context``: of the model or the program. ``on_token`` is called with
    each new token.
    """

    def __init__(
        self,
        request: Request,
        scale: float,
        context: int,
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        self.request, self.scale, self.on_token = request, scale, on_token
        self.total = request.total(context)
        self.text = list(request.prompt)

    def choose(self, logits: Int) -> int:
        """Appends the token that follows the text, whose last token has the logits
        (vocabulary,)."""
        token = self.request.sampler.choose(logits, self.scale, len(self.text))
        self.append(token)
        return token

    def append(self, token: int) -> None:
        """Appends a token that the device has chosen."""
        self.text.append(token)
        if self.on_token:
            self.on_token(token)

    @property
    def stopped(self) -> bool:
        """Whether the last token ends the text, however many more there may be."""
        return self.request._stops(self.text)

    @property
    def finished(self) -> bool:
        return self.stopped or len(self.text) == self.total
