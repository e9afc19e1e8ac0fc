"""`safevlm audit`: which images of a training set are risky, which are doubles, and how many there truly are.

    sources → plan → scan (shards on disk) → duplicates → verdicts → estimate, gallery, exclusion list

The scan is the long half; it stores probabilities only. All that comes after is made anew from the shards in one
stream, so that another threshold or policy costs no second look at the images.
"""
