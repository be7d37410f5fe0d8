"""What a change of resources would do to proxies, found out before it is stored.

Read in this order: `kinds` (which proxies to try it on), `judge` (compile for one of each kind and decode with the
agent's own interpreter), `blame` (which document and field a refusal is due to), `trial` (all of it, in turns that
leave the event loop free).
"""

from istiod.trial.trial import Outcome, Trial, Verdict

__all__ = ["Outcome", "Trial", "Verdict"]
