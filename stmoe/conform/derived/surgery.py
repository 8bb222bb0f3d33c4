"""What every surgery must do, on a sparse language model or on one with adapters."""

from stmoe.conform.derived import operation

numbers_fit, the_same_each_time, keeping_all_changes_nothing = operation.checks(
    'surgery', operation.SPARSE, operation.ADAPTED)
