"""Serves an object store in memory on loopback until its standard input ends; prints its address first.

With `strict` it makes the bucket `backup`, prints an access key and its secret, and from then on takes only requests that are
signed with it: botocore computes the signature again.
"""

import sys

import boto3
import requests
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
url = f"http://{host}:{port}"
print(url, flush=True)

if "strict" in sys.argv:
    anybody = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **anybody).create_bucket(Bucket="backup")
    iam = boto3.client("iam", endpoint_url=url, **anybody)
    iam.create_user(UserName="vmferry")
    policy = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
    iam.put_user_policy(UserName="vmferry", PolicyName="bucket", PolicyDocument=policy)
    key = iam.create_access_key(UserName="vmferry")["AccessKey"]
    requests.post(f"{url}/moto-api/reset-auth", data="0", timeout=10).raise_for_status()
    print(key["AccessKeyId"], key["SecretAccessKey"], flush=True)

sys.stdin.read()
