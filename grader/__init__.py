"""Grades a submission, a zip or folder that holds the package ``homework``, from outside: ``python -m grader ID.zip``.

It uses only the public interface of the submission, whose code runs in confined processes. These answer calls by a pipe;
every figure is computed here, from what they answer.

- ``__main__.py``    the command line and the report
- ``grading.py``     the loop over the parts
- ``parts.py``       the parts: what each is worth, what is allowed, how its figures turn into points
- ``frames.py``      reads the validation images
- ``measure.py``     measures: the figures of each part
- ``remote.py``      calls a submission's functions in another process, and checks what comes back
- ``serve.py``       answers these calls there, in the form of ``protocol.py``
- ``sandbox.py``     starts, limits and ends such a process; ``child.py`` is its first lines
- ``bubblewrap.py``  confines it; where it is missing, ``namespaces.py`` or else ``seccomp.py`` does
- ``confine.py``     what it may not do besides
- ``cgroup.py``      bounds all that it starts together, where the kernel lets it
- ``processes.py``   what its descendants use, and their end
- ``scratch.py``     the folder in which all this happens
- ``submission.py``  checks and unpacks the zip
"""
