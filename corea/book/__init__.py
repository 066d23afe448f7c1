"""What a page shows: tables, figures, comparisons with the papers, provenance."""
