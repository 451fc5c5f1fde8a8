"""Reads run directories and writes tables, figures and the report. Never trains; imports no torch and no other room."""
