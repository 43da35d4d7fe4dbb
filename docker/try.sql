-- What docker/compose.yaml has the database begin with: a server that leads to the sandbox.
CREATE EXTENSION doubletick;
CREATE SERVER doubletick FOREIGN DATA WRAPPER doubletick
	OPTIONS (base_url 'https://127.0.0.1:8443', ca_file '/sandbox/ca.pem');
CREATE USER MAPPING FOR CURRENT_USER SERVER doubletick OPTIONS (api_key 'key_sandbox');
