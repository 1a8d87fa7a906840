"""How the updates of one version become the next: rules, appraisal and fold."""
