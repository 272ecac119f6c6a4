"""What runs inside the sandbox's own interpreter, and what it is confined with. Standard library only, of any Python
from 3.11 on: that interpreter need not be the server's."""
