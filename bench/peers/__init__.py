"""What a team would pick instead of Lastcall, each as its own documentation shows it, behind one endpoint: GET /me.

They run in an environment of their own (`environment.py`), so that none of them becomes a dependency of the project.
"""
