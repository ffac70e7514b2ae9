"""From decoded pixels to restored ones: windows, tiles, turns at the engine. Knows neither Redis nor HTTP."""
