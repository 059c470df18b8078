"""The campaign of kills: a small run is killed at chosen moments, resumed, and compared."""
