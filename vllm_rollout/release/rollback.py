"""Rollback: back to the state before, verified, and loud when it does not work."""

from vllm_rollout.errors import ExitCode, RolloutError
from vllm_rollout.judge import Outcome
from vllm_rollout.release.context import Context, End, trouble_of
from vllm_rollout.release.journal import JournalEntry, Phase


def roll_back(
    context: Context, entry: JournalEntry, reason: str, *, code: ExitCode = ExitCode.ROLLED_BACK
) -> End:
    """Return the target to the revision `entry.before` and verify that it serves.

    Where nothing served before, the release is removed: that is the state before. The journal is
    closed only when the end was verified, so that the next run takes up a rollback that failed.

    Returns:
        `code`, or NEEDS_PERSON when service was not restored.
    """
    target = context.target
    back_to = f"revision {entry.before}" if entry.before else "nothing deployed"
    context.say(f"rolling {target} back to {back_to}", reason)
    started = context.clock.monotonic()
    context.still_ours()
    context.touched = True
    entry = context.journal.advance(entry, Phase.ROLLBACK, reason, now=context.clock.now())
    timeout = context.policy.deploy_timeout
    try:
        if entry.before is None:
            context.platform.uninstall(target, timeout=timeout)
            trouble = ""
        else:
            context.platform.rollback(
                target,
                entry.before,
                description=f"vllm-rollout {context.run_id}: rollback, {reason}"[:200],
                timeout=timeout,
            )
            acted = context.clock.monotonic() - started
            context.say(f"{back_to} is back after {acted:.1f} s; verifying that it serves")
            run = context.verify(target)
            trouble = "" if run.outcome is Outcome.PASS else trouble_of(run)
            if unregistered := context.register():
                # What serves again was registered once; that this is stale is no reason to call
                # the rollback failed.
                context.say(f"{target} is {unregistered}", outcome=Outcome.INCONCLUSIVE)
    except RolloutError as error:
        context.say_why(error)
        trouble = f"{error} {error.remedy}".rstrip()
    if trouble:
        context.say("ROLLBACK DID NOT RESTORE SERVICE", trouble, Outcome.FAIL)
        return End(
            code=ExitCode.NEEDS_PERSON,
            conclusion=f"A person is needed: {target} was to return to {back_to} because of "
            f"{reason}, and it does not serve: {trouble}",
        )
    seconds = context.clock.monotonic() - started
    context.journal.advance(entry, Phase.DONE, f"rolled back: {reason}", now=context.clock.now())
    context.say(
        f"{target} has {back_to} again, verified {seconds:.1f} s after the decision",
        outcome=Outcome.PASS,
    )
    return End(
        code=code, conclusion=f"Rolled back to {back_to} in {seconds:.1f} s because of {reason}"
    )
