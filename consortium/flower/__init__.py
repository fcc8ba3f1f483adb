"""What coordinator and sites must agree on to carry a Flower app's messages; only ``compat`` imports flwr."""
