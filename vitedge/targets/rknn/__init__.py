"""Rockchip's NPUs (RK3588 and its kin), by the vendor's compiler in an environment of its own."""

from vitedge.targets.rknn.target import RknnTarget

TARGET = RknnTarget()
