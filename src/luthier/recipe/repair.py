"""The section ``repair``: candidate patches for bugs with tests, and how they are judged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from luthier.recipe.options import Auto, Options


class Server(Options):
    """A server with OpenAI's interface for chats (``/chat/completions``), which is asked instead of the run's model."""

    url: str = Field(pattern=r"^https?://\S+$")
    """Address up to the version: ``http://localhost:8000/v1``. What is asked goes there: functions, patches, what tests said."""
    model: str
    """The model's name there."""
    key_variable: str | None = None
    """Environment variable with the key; the key itself stands in no file."""
    timeout_s: float = Field(300, gt=0)
    """Seconds that an answer may take."""
    num_at_once: int = Field(4, ge=1)
    """Questions at once."""
    num_retries: int = Field(4, ge=0)
    """How often a question is asked again where the server is busy or cannot be reached, after longer and longer waits."""


class Rounds(Options):
    """Further attempts at a bug, each told what the tests said of the last one (`luthier repair --rounds`)."""

    max_rounds: int = Field(3, ge=1)
    """Prompts for each bug; ``num_candidates`` patches are judged for each."""
    max_tokens: int | None = Field(None, ge=1)
    """No further round for a bug once its prompts and outputs have so many tokens."""
    max_seconds: float | None = Field(None, gt=0)
    """No further round for a bug once writing and judging for it took so long: of what is done for several bugs at once its share, of a server the time until it answered."""
    variations: int = Field(0, ge=0)
    """Rounds after a patch that passes, in which another one is asked for."""
    server: Server | None = None
    """Where patches come from instead of the run's model; needs ``task.format: chat``. Without it nothing is contacted."""


class Repair(Options):
    """Candidate patches for bugs with tests, and how they are judged (`luthier repair`)."""

    bugs: dict[str, Any] | None = None
    """``type`` and options of the source of the bugs: a record is a fix with the file it belongs in and its tests."""
    num_candidates: int = Field(10, ge=1)
    """Patches judged for each bug."""
    method: Literal["beam", "diverse-beam", "sample"] = "beam"
    """Beam search; beams in groups that avoid each other's tokens; or samples."""
    num_beams: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Beams or samples of each bug; ``auto`` is as many as candidates. More of them are a reserve for ``refill``."""
    refill: bool = True
    """Put further beams in the place of those that repeat another or change nothing, white space and comments apart."""
    rank_by: Literal["score", "mean-logprob", "agreement", "tests"] = "score"
    """Order of the candidates: the search's own score, the mean log-probability of their tokens, how many beams wrote the same, or, once they are judged, what their tests said: what passes comes first, so that ``plausible@1`` is ``plausible@k``."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens of a candidate at most."""
    length_penalty: float = 1.0
    """A beam's score is its log-probability divided by its number of tokens to this power."""
    num_groups: int = Field(5, ge=1)
    """Groups of diverse beams; divides the number of beams."""
    diversity_penalty: float = Field(1.0, ge=0)
    """Taken off a token's log-probability for each beam of an earlier group that took it at this step."""
    temperature: float = Field(0.8, gt=0)
    """Of samples."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Samples are drawn from the likeliest tokens that add up to this."""
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """What writes the candidates: the model in this process, or vLLM where that is installed; ``auto`` takes vLLM where there is a GPU as well. Which it was stands in ``candidates.jsonl``."""
    rows_at_once: int = Field(80, ge=1)
    """Beams of all bugs that are computed at once; changes speed and memory only."""
    other_format: Literal["refuse", "warn"] = "refuse"
    """What happens where rows were written in another way in training than the recipe says now: representation, comments, tokens."""
    timeout_s: float = Field(60.0, gt=0)
    """Seconds that compiling may take, and testing."""
    memory_mib: int = Field(2048, ge=16)
    """Memory of all processes of a test run."""
    disk_mib: int = Field(256, ge=1)
    """Room for files of a test run, the copied project included."""
    num_workers: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Test runs at once; ``auto`` is the number of cores."""
    rounds: Rounds = Rounds()
    """Several attempts at each bug, with feedback."""

    @property
    def beams(self) -> int:
        """``num_beams``, whatever was given."""
        return self.num_candidates if self.num_beams == "auto" else self.num_beams

    @property
    def written_order(self) -> str:
        """Order of the candidates before they are judged."""
        return "score" if self.rank_by == "tests" else self.rank_by

    @model_validator(mode="after")
    def _enough(self) -> Repair:
        if self.beams < self.num_candidates:
            raise ValueError(
                f"num_beams={self.beams} cannot give num_candidates={self.num_candidates}; take as many at least"
            )
        if self.method == "diverse-beam" and self.beams % self.num_groups:
            raise ValueError(f"num_groups={self.num_groups} does not divide the {self.beams} beams")
        return self
