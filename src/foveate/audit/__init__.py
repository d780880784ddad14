"""The auditor: what a plan saved, what it cost, under load, and the receipt that shows it.

It drives public interfaces only: any endpoint that speaks the OpenAI chat API, or our engine.
"""
