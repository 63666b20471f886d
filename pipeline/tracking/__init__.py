"""Report a job to TensorBoard and MLflow, from its driver alone; neither is imported unless it is asked for."""
