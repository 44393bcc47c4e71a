"""Measurements: optimiser steps (`step`), reading (`read`), damage to a store (`corruption`),
cost against size (`growth`)."""
