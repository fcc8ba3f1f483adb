"""Who a certificate can speak for."""

import enum


class Role(enum.StrEnum):
    COORDINATOR = "coordinator"
    SITE = "site"
    ADMIN = "admin"
    AUDITOR = "auditor"
    READER = "reader"
