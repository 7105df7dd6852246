"""Injection methods: one module per idea, one class per method; `saeflow.config.METHODS` says where each is."""
