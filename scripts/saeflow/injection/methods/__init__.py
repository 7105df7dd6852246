"""Injection methods: one module per idea, one class per method.

`saeflow.config.injection.METHODS` says where each is.
"""
