"""Grades a submission, a zip or folder that holds the package ``homework``, from outside: ``python -m grader ID.zip``.

It uses only the public interface of the submission, and each part of the grade runs in its own process:

- ``__main__.py``    the command line and the report
- ``submission.py``  checks and unpacks the zip
- ``frames.py``      reads the validation images
- ``parts.py``       the parts: what each is worth, how its figures turn into points
- ``sandbox.py``     starts a child process, talks to it by a pipe, and survives whatever it does
- ``child.py``       the first lines of the child, run by its path
- ``bubblewrap.py``  confines the child; where it is missing, ``namespaces.py`` or else ``seccomp.py`` does
- ``confine.py``     what the child process may not do besides
- ``processes.py``   what a process and its descendants use, and their end
- ``scratch.py``     the scratch folder, and those of killed graders
- ``measure.py``     what runs in there: measures (the only file that imports torch)
"""
