"""enricher: gets the orders. The only service that calls Allegro's checkout-form endpoints."""
