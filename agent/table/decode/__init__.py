"""Envoy's protobuf messages to the table's values, one module for each part of the API.

Rule: every reader consumes the fields it understands and the message complains of what is left, so no field is
ever ignored in silence. A field that is consumed without effect is named at that place, with the reason.
"""
