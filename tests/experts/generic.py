"""Any bank of experts with the same arguments; stmoe/conform/generic.py has them."""

from stmoe.conform import generic

FIELDS, build, of = generic.OF_BANKS, generic.bank, generic.bank_of
