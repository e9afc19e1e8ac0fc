"""What scores say: rates and means with intervals, agreement of judges, paired comparison, detector accuracy."""
