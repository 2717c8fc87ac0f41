"""The acceptance table: faults and bad inputs, what is expected of each, and how it is checked.

`rows` is the table, `table_server` what it is tried on; `tests/system/test_acceptance_table.py`
runs it and `document` writes docs/acceptance.md.
"""
