"""What it means that a run of this workload passed: from what the user asked for and from the traced run."""

from __future__ import annotations

import functools

from profiler.errors import UnverifiedError, UsageError, WorkloadError
from profiler.harness.interface import Sandbox, Service
from profiler.model import Recipe, Trace
from profiler.options import Options
from profiler.verifier.accept import Acceptance, checked

QUICK = 15.0  # seconds that a rerun may take at least before it counts as hanging
HEALTH_SECONDS = 300.0  # for a service to become healthy in the traced run, without --timeout
SETTLE_SECONDS = 2.0  # that a service is traced after it is healthy: what it does when all is done


def time_limit(options: Options, trace: Trace) -> float:
    """How many seconds a rerun may take."""
    return options.timeout or max(QUICK, 4 * trace.seconds + 10)


def service_of(options: Options) -> Service | None:
    """How the traced run of a service is ended; None for a workload that ends by itself."""
    if options.run_for is None and not options.until_healthy:
        return None
    return Service(
        options.run_for or options.timeout or HEALTH_SECONDS,
        until_healthy=options.until_healthy,
        settle=SETTLE_SECONDS,
        check=None if options.check is None else functools.partial(checked, options.check),
        check_inside=options.check_inside,
    )


def service_again(options: Options, trace: Trace) -> Service | None:
    """How the reruns of what was traced are ended: as long after their start, or as healthy; None as above.

    A service that the user ended with Ctrl-C has to run as long as it did then.
    """
    check = None if options.check is None else functools.partial(checked, options.check)
    if trace.interrupted is not None:
        return Service(trace.interrupted, check=check, check_inside=options.check_inside)
    service = service_of(options)
    if service is None or trace.stopped is None:
        return None
    return Service(
        time_limit(options, trace) if options.until_healthy else service.seconds,
        until_healthy=options.until_healthy,
        healthy=trace.stopped.healthy,
        check=check,
        check_inside=options.check_inside,
    )


def check_health(options: Options, sandbox: Sandbox) -> None:
    """Raise UsageError for --until-healthy where nobody checks health."""
    if options.until_healthy and not sandbox.health_check():
        raise UsageError(
            "--until-healthy: this container has no health check",
            "add --health-cmd to docker run, give the image a HEALTHCHECK, or use --for",
        )


def judge_traced(options: Options, trace: Trace) -> None:
    """Raise WorkloadError when the traced run does not fulfil what the user asked for beyond its exit code."""
    if trace.interrupted is not None:
        return
    failed, hint = None, ""
    if trace.stopped is not None:
        failed, hint = trace.stopped.complaint, trace.stopped.hint
    elif options.until_healthy:
        failed = f"the workload ended with exit code {trace.exit_code} before it was healthy"
    elif trace.exit_code == options.exit_code and options.check is not None:
        failed = checked(options.check)
    if not failed and (trace.stopped is not None or trace.exit_code == options.exit_code):
        failed = next((f"{path} is not produced" for path in options.expect if not trace.files.get(path)), None)
    if failed:
        hint = hint or "mend the workload, or what is asked of it, first"
        raise WorkloadError(f"even with every privilege {failed}", hint)


def acceptance(options: Options, trace: Trace, sandbox: Sandbox, broad: Recipe) -> Acceptance:
    """What reruns are held to. With --compare-output a run with every privilege gives the output to compare with.

    Raises UnverifiedError when that run ends otherwise than the traced one.
    """
    like = None
    service = service_again(options, trace) is not None
    if options.compare_output and service:
        raise UsageError("--compare-output is for commands that end, and this one was stopped", "use --check instead")
    if options.compare_output:
        outcome = sandbox.rerun(broad, timeout=time_limit(options, trace))
        if outcome.timed_out or outcome.exit_code != trace.exit_code:
            raise UnverifiedError(
                f"run again with every privilege, the workload does not end as before{outcome.last_words()}",
                "make it repeatable (state that it leaves behind, ports in use, input it waits for)",
            )
        like = outcome
    return Acceptance(
        trace.exit_code,
        service=service,
        like=like,
        check=options.check,
        files=tuple((path, trace.files[path]) for path in options.expect if trace.files.get(path)),
    )


def meaning(options: Options, trace: Trace) -> tuple[str, ...]:
    """What a rerun must fulfil to pass, in words: the exit code or how a service must do, then what was added."""
    service = service_again(options, trace)
    words = [f"it exits with {trace.exit_code}"]
    if service is not None:
        words = [f"it still runs after {service.seconds:.1f} s".replace(".0 s", " s")]
        if service.until_healthy:
            words = [f"its health check passes within {service.seconds:.0f} s"]
        elif service.healthy:
            words.append("its health check passes")
    if options.check is not None:
        words.append(f"`{options.check}` exits with 0 on this host")
    if options.check_inside is not None:
        words.append(f"`{options.check_inside}` exits with 0 in the container")
    if options.compare_output:
        words.append("its output is that of a run with every privilege")
    words += [f"it leaves {path} as the traced run did" for path in options.expect]
    if options.strict:
        words.append("no call is refused in it that had succeeded")
    return tuple(words)
