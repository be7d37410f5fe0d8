"""The control plane: resources, compilation to xDS, CA, enrolment, admin API and CLI."""
