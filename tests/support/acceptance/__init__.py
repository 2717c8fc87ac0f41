"""The acceptance table: faults and bad inputs, what is expected of each, and how it is checked.

`rows` has the table, and `table_server` the servers it is tried on.
`tests/system/test_acceptance_table.py` runs the table, and `document` writes docs/acceptance.md.
"""
