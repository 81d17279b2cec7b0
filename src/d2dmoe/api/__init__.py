"""The library: functions on models in memory, which `d2dmoe` itself exports."""
