"""Every error a user can meet, in one tree.

    HpcserveError                    exit 1   http 500
    ├── UsageError                   exit 2   http 400   the command line or a config file is wrong
    │   └── ConfigError                                  options that contradict each other
    ├── ModelError                   exit 2   http 500   the model folder cannot be used
    │   ├── ModelNotFoundError                http 404
    │   ├── UnsupportedModelError
    │   ├── WeightsError                                 a tensor is missing, left over, misshapen, corrupt
    │   └── TokenizerError
    ├── RequestError                 exit 1   http 400   one request is wrong; others go on
    │   ├── InvalidParameterError                        names the parameter
    │   ├── ContextLengthError                           carries both numbers
    │   ├── GrammarError                                 a schema, regex or EBNF cannot be compiled
    │   ├── QueueFullError                    http 503   try again later
    │   ├── OutOfTimeError                    http 503   the job ends before the answer would
    │   └── RequestAbortedError               http 499
    ├── EngineError                  exit 1   http 503
    │   ├── EngineStartError                             it never became ready
    │   └── EngineDeadError                              it was ready and is gone
    ├── InputError                   exit 2              an input file cannot be read as asked
    ├── OutputError                  exit 2              an output cannot be written
    ├── IncompleteRunError           exit 75             stopped early; running it again goes on
    ├── RowsFailedError              exit 1              more rows failed than the user allows
    ├── NoProgressError              exit 1              run after run finishes nothing
    ├── RunCancelledError            exit 1              a batch run was told to stop
    ├── LauncherError                exit 1              a job could not be started or reached
    │   ├── SlurmError                                   a command of SLURM failed; carries what it said
    │   ├── JobNotFoundError         exit 2
    │   ├── JobFailedError                               the job that was waited for is dead
    │   ├── JobTimeoutError          exit 124            it was not ready in the time given
    │   └── FabricError                                  the required network is not there
    └── PortInUseError               exit 2

`str(error)` is one line for the user: what happened, to what, and the fix where there is one.
Exit 3 (finished with failed rows) is no error: the run completed and says which rows failed.
"""

from __future__ import annotations


class HpcserveError(Exception):
    """Base of all; `exit_code` ends the process, `http_status` answers a request.

    `error_type` and `code` are the fields of OpenAI's error body.
    """

    exit_code = 1
    http_status = 500
    error_type = "server_error"
    code: str | None = None


class UsageError(HpcserveError):
    exit_code = 2
    http_status = 400
    error_type = "invalid_request_error"


class ConfigError(UsageError):
    pass


class ModelError(HpcserveError):
    exit_code = 2


class ModelNotFoundError(ModelError):
    http_status = 404
    error_type = "invalid_request_error"
    code = "model_not_found"


class UnsupportedModelError(ModelError):
    pass


class WeightsError(ModelError):
    pass


class TokenizerError(ModelError):
    pass


class RequestError(HpcserveError):
    http_status = 400
    error_type = "invalid_request_error"
    param: str | None = None


class InvalidParameterError(RequestError):
    """A field of a request is out of range or of the wrong kind."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param
        self.message = message

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return (type(self), (self.param or "", self.message))


class ContextLengthError(RequestError):
    """at_least: the prompt was not counted to its end.

    param: the field that the prompt came from.
    """

    code = "context_length_exceeded"
    param: str | None = "prompt"

    def __init__(
        self,
        num_prompt_tokens: int,
        max_tokens: int | None,
        context_length: int,
        at_least: bool = False,
    ) -> None:
        asked = f"the prompt has {'at least ' if at_least else ''}{num_prompt_tokens} tokens"
        if max_tokens is not None:
            asked += f" and max_tokens is {max_tokens} ({num_prompt_tokens + max_tokens} in all)"
        super().__init__(
            f"{asked}, but the context length is {context_length} tokens; shorten the prompt"
            + (" or lower max_tokens" if max_tokens is not None else "")
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        self.context_length = context_length
        self.at_least = at_least

    def __reduce__(self) -> tuple[type, tuple[int, int | None, int, bool], dict[str, str | None]]:
        given = (self.num_prompt_tokens, self.max_tokens, self.context_length, self.at_least)
        return (type(self), given, {"param": self.param})


class GrammarError(RequestError):
    code = "invalid_grammar"
    param: str | None = "response_format"


class QueueFullError(RequestError):
    http_status = 503
    error_type = "overloaded_error"
    code = "queue_full"


class OutOfTimeError(RequestError):
    """The server's job ends before such an answer would; carries the seconds."""

    http_status = 503
    error_type = "overloaded_error"
    code = "out_of_time"
    param = "max_tokens"

    def __init__(self, needed_s: float, left_s: float, retry_after_s: float) -> None:
        super().__init__(
            f"this server's job ends in {max(left_s, 0):.0f} s, and such a request takes about "
            f"{needed_s:.0f} s; ask for fewer tokens, or again in {retry_after_s:.0f} s, when its "
            "next run may be up"
        )
        self.needed_s = needed_s
        self.left_s = left_s
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type, tuple[float, float, float]]:
        return (type(self), (self.needed_s, self.left_s, self.retry_after_s))


class RequestAbortedError(RequestError):
    http_status = 499
    code = "request_aborted"


class EngineError(HpcserveError):
    http_status = 503


class EngineStartError(EngineError):
    pass


class EngineDeadError(EngineError):
    code = "engine_dead"


class InputError(HpcserveError):
    exit_code = 2
    http_status = 400


class OutputError(HpcserveError):
    exit_code = 2


class IncompleteRunError(HpcserveError):
    exit_code = 75


class RowsFailedError(HpcserveError):
    pass


class NoProgressError(HpcserveError):
    pass


class RunCancelledError(HpcserveError):
    pass


class PortInUseError(HpcserveError):
    exit_code = 2


class LauncherError(HpcserveError):
    http_status = 503


class SlurmError(LauncherError):
    pass


class JobNotFoundError(LauncherError):
    exit_code = 2


class JobFailedError(LauncherError):
    pass


class JobTimeoutError(LauncherError):
    exit_code = 124


class FabricError(LauncherError):
    pass
