"""What every surgery from dense to sparse must do, on a dense language model."""

from stmoe.conform.derived import operation

numbers_fit, the_same_each_time, _ = operation.checks('factorisation', operation.DENSE)
