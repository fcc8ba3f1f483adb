"""How a site's text becomes packed tokens and a manifest: ahead of the jobs, by many processes, resumable."""
