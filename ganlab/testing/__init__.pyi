"""The public names, for `from ganlab.testing import ...`. `__init__.py` reads this list."""

from .contract import (
    Finding as Finding,
    check_plugin as check_plugin,
    examine as examine,
    parametrize_with_rules as parametrize_with_rules,
)
from .experiment import (
    Broken as Broken,
    NotApplicable as NotApplicable,
    Subject as Subject,
    offering as offering,
    tiny_run as tiny_run,
)
from .known import GoldenLogits as GoldenLogits, LinearCritic as LinearCritic
from .rules import RULES as RULES, Rule as Rule, check_recipe as check_recipe
from .seeding import seeded as seeded
