"""Grades a submission, a zip or folder that holds the package ``homework``, from outside: ``python -m grader ID.zip``.

It uses only the public interface of the submission, and each part of the grade runs in its own process:

- ``__main__.py``    the command line and the report
- ``submission.py``  checks and unpacks the zip
- ``frames.py``      reads the validation images
- ``parts.py``       the parts: what each is worth, how its figures turn into points
- ``sandbox.py``     runs a function in a child process and survives whatever it does
- ``confine.py``     what the child process may not do
- ``measure.py``     what runs in there: measures (the only file that imports torch)
"""
