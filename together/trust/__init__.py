"""Who belongs together: the cluster's secret, the join code that says it, and certificates made of it."""
